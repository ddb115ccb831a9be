"""What predictions are worth: metrics, and whether two models differ."""
