"""Honest evaluation of trained models."""
