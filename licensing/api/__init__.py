"""The API door of licensing: DRF views that translate a request, call one rule function and translate back."""
