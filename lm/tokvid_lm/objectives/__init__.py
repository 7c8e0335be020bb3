"""What a video language model is trained to do."""
