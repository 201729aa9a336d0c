"""What ends a measurement without being a mistake."""

from __future__ import annotations


class NotAvailableError(Exception):
    """A library is not there, or not for the device that is measured."""


class UnequalNetworksError(Exception):
    """Two contenders do not train the same network."""
