"""Text to ids and back: tokenizer files, faster engines and their proof, training, and how well one fits."""
