"""Videos in, tokens out, training batches: the pipeline around the VidTok tokenizers."""
