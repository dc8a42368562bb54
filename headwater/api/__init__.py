"""The HTTP interface under /v1, one module per concern. `headwater.app` puts it together."""
