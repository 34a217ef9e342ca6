"""The networks of IndexTTS2: tensors in, tensors out, with the key names of the released checkpoints."""
