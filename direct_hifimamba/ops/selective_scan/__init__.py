"""Selective scan: one public function, one module per backend."""

from direct_hifimamba.ops.selective_scan.interface import BACKENDS, resolve_backend, selective_scan

__all__ = ["BACKENDS", "resolve_backend", "selective_scan"]
