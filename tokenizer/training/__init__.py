"""What a tokenizer is trained with: losses, discriminators, entropy of the codes."""
