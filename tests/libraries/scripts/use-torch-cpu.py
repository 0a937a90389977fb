# /// script
# dependencies = ["torch==2.13.0+cpu", "numpy"]
#
# [tool.will-it-run]
# library = "torch, for the CPU"
# does = "trains a small network"
# expects = true
# ///
import torch
from torch import nn

torch.manual_seed(0)
x = torch.rand(256, 2)
y = (x.sum(1, keepdim=True) > 1).float()
model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
optimizer = torch.optim.Adam(model.parameters(), 0.05)
for _ in range(100):
    optimizer.zero_grad()
    loss = nn.functional.binary_cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
result = loss.item() < 0.2
