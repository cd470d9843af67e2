"""What a fine-tuning trains of a model that is loaded: LoRAs, new words, or whole networks."""
