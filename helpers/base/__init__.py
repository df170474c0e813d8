"""What knows nothing of recipes and models: paths, whole writes, tables, texts, the hub, W&B, memory, faster layers."""
