"""Caption metrics, reports and pictures."""
