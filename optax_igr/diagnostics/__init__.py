"""Diagnostics: what training did."""

from optax_igr.diagnostics.monitor_drift import MonitorDriftState as MonitorDriftState
from optax_igr.diagnostics.monitor_drift import monitor_drift as monitor_drift
