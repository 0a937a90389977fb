# /// script
# dependencies = ["asyncua"]
#
# [tool.will-it-run]
# does = "reads a variable of an OPC UA server on loopback"
# expects = 21.5
# ///
import logging

from asyncua import Client, Server

logging.getLogger("asyncua").setLevel(logging.ERROR)
server = Server()
await server.init()
server.set_endpoint("opc.tcp://127.0.0.1:4840/plant")
space = await server.register_namespace("urn:plant")
roof = await server.nodes.objects.add_object(space, "Roof")
variable = await roof.add_variable(space, "Temperature", 21.5)
async with server:
    async with Client("opc.tcp://127.0.0.1:4840/plant") as client:
        result = await client.get_node(variable.nodeid).read_value()
