"""From raw text to the token stream: harvest, tokenizer, preprocessing, phases."""
