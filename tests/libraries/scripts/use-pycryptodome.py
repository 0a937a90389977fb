# /// script
# dependencies = ["pycryptodome"]
#
# [tool.will-it-run]
# does = "encrypts with AES in EAX mode"
# expects = "secret"
# ///
from Crypto.Cipher import AES
from Crypto.Random import get_random_bytes

key = get_random_bytes(16)
cipher = AES.new(key, AES.MODE_EAX)
hidden, tag = cipher.encrypt_and_digest(b"secret")
result = AES.new(key, AES.MODE_EAX, cipher.nonce).decrypt_and_verify(hidden, tag).decode()
