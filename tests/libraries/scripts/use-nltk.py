# /// script
# dependencies = ["nltk"]
#
# [tool.will-it-run]
# does = "counts the stems of a text, without its data"
# expects = [["run", 3], ["fast", 1]]
# ///
from nltk import FreqDist
from nltk.stem import PorterStemmer
from nltk.tokenize import wordpunct_tokenize

stems = [PorterStemmer().stem(word) for word in wordpunct_tokenize("run runs running fast")]
result = [list(entry) for entry in FreqDist(stems).most_common(2)]
