"""Tests of `agman`: they need PyTorch, torchvision, numpy, safetensors and pytest alone."""

import torch

torch.set_num_threads(1)  # small tensors: more threads than processors free would wait for each other
