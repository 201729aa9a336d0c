"""What ends a measurement without being a mistake."""

from __future__ import annotations


class NotAvailableError(Exception):
    """A library is not there, or not for the device that is measured."""


class MeasuringError(Exception):
    """Nothing can be measured or recorded as asked."""


class OtherSettingError(MeasuringError):
    """The result file holds figures that those of this call may not stand beside or replace."""


class UnequalNetworksError(MeasuringError):
    """Two contenders do not train the same network."""
