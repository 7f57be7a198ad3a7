"""`python -m wsi_ips.cli`."""

from wsi_ips.cli import main

main()
