"""Tensors only: encoder, attention, ledger, classifier, bundle. Opens no slide."""
