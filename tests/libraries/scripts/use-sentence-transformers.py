# /// script
# dependencies = ["sentence-transformers", "torch==2.13.0+cpu"]
#
# [tool.will-it-run]
# does = "puts a model together and compares sentences by their words"
# expects = true
# ///
from sentence_transformers import SentenceTransformer, util
from sentence_transformers.sentence_transformer.modules import BoW

words = BoW(vocab=["warm", "cold", "roof", "cellar"])
model = SentenceTransformer(modules=[words], device="cpu")
first, second, third = model.encode(["roof warm", "warm roof", "cellar cold"])
result = bool(util.cos_sim(first, second) > util.cos_sim(first, third))
