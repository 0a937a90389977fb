# /// script
# dependencies = ["spacy"]
#
# [tool.will-it-run]
# does = "splits a text into words and finds phrases, without a model"
# expects = [7, ["cold store"]]
# ///
import spacy
from spacy.matcher import PhraseMatcher

nlp = spacy.blank("en")
matcher = PhraseMatcher(nlp.vocab)
matcher.add("PLACE", [nlp.make_doc("cold store")])
text = nlp("The cold store isn't cold.")
result = [len(text), [text[start:end].text for _, start, end in matcher(text)]]
