"""What a video language model is trained to do: the answers of its hidden states, and what they cost."""
