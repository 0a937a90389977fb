# /// script
# dependencies = ["paho-mqtt"]
#
# [tool.will-it-run]
# does = "publishes to a broker on loopback that checks the packet"
# expects = ["plant/roof", "21.5"]
# ///
import socket
import threading

import paho.mqtt.client as mqtt

listener = socket.create_server(("127.0.0.1", 0))
received = []


def packet(stream):
    kind, length = stream.read(2)  # short packets have one byte of length
    return kind >> 4, stream.read(length)


def broker():
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        packet(stream)
        connection.sendall(b"\x20\x02\x00\x00")  # CONNACK: accepted
        _, body = packet(stream)
        size = int.from_bytes(body[:2], "big")
        received.extend([body[2 : 2 + size].decode(), body[2 + size :].decode()])


thread = threading.Thread(target=broker)
thread.start()
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.connect("127.0.0.1", listener.getsockname()[1])
client.loop_start()
client.publish("plant/roof", "21.5").wait_for_publish(5)
thread.join(5)
client.loop_stop()
result = received
