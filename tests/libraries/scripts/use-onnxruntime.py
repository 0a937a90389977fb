# /// script
# dependencies = ["onnxruntime", "onnx"]
#
# [tool.will-it-run]
# does = "runs a small ONNX model"
# expects = [[11.0, 22.0]]
# ///
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "abc"]
graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "sum", values[:2], values[2:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString())
(total,) = session.run(None, {"a": np.float32([[1, 2]]), "b": np.float32([[10, 20]])})
result = total
