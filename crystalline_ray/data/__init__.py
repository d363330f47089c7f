"""Text in, batches out: corpus -> tokenizer -> Arrow shards -> batches by random access."""
