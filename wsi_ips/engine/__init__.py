"""The only place where slides meet models."""
