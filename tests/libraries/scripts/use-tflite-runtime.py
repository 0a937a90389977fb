# /// script
# dependencies = ["tflite-runtime", "numpy<2"]
#
# [tool.will-it-run]
# does = "runs a small model that adds"
# expects = [11.0, 22.0]
# stderr = "XNNPACK delegate"
# ///
import base64

import numpy as np
from tflite_runtime.interpreter import Interpreter

MODEL = (
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAkAAAAFAAAAAMAAAABAAAABAAAAHT///8BAAAABAAAAID///8BAAAA"
    "EAAAAAwAFAAQAAwACAAEAAwAAAAkAAAADAAAABAAAABgAAAAAQAAAAIAAAACAAAAAAAAAAEAAAABAAAAFAAAAAAADgAUAAAA"
    "EAAMAAsABAAOAAAAKAAAAAAAAAsIAAAADAAAAAEAAAACAAAAAgAAAAAAAAABAAAABAAEAAQAAAADAAAAMAAAABQAAAAEAAAA"
    "6P///0QAAAAoAAAA9P///0AAAAAkAAAADAAMAAgAAAAAAAQADAAAADAAAAAUAAAAAQAAAAIAAAABAAAAAgAAAAEAAAACAAAA"
    "AQAAAGMAAAABAAAAYgAAAAEAAABhAAAA"
)
model = Interpreter(model_content=base64.b64decode(MODEL))
model.allocate_tensors()
for place, values in zip(model.get_input_details(), ([1, 2], [10, 20])):
    model.set_tensor(place["index"], np.float32(values))
model.invoke()
result = model.get_tensor(model.get_output_details()[0]["index"])
