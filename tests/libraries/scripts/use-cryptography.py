# /// script
# dependencies = ["cryptography"]
#
# [tool.will-it-run]
# does = "encrypts, signs and verifies"
# expects = ["secret", "signed"]
# quick = true
# ///
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

box = Fernet(Fernet.generate_key())
key = Ed25519PrivateKey.generate()
key.public_key().verify(key.sign(b"signed"), b"signed")
result = [box.decrypt(box.encrypt(b"secret")).decode(), "signed"]
