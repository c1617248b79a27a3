"""Training the heads on a frozen base model."""
