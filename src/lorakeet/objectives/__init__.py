"""What training minimises, each as a function of a model and a packed batch: supervised fine-tuning so far."""
