# /// script
# dependencies = ["torch"]
#
# [tool.will-it-run]
# does = "asks for the build with CUDA, as the index offers it first"
# why_not = "does not fit into the 2048 MiB that a build may fill"
# instead = "ask for the build for the CPU, as the next row does"
# policy.build.download_mib = 4096
# ///
import torch

result = torch.rand(2).sum().item() >= 0
