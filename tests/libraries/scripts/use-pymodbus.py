# /// script
# dependencies = ["pymodbus"]
#
# [tool.will-it-run]
# does = "writes and reads registers of a Modbus server on loopback"
# expects = [215, 80]
# ///
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

registers = SimData(0, values=[0] * 20, datatype=DataType.REGISTERS)
server = ModbusTcpServer(SimDevice(1, simdata=[registers]), address=("127.0.0.1", 5020))
await server.listen()
client = AsyncModbusTcpClient("127.0.0.1", port=5020)
await client.connect()
await client.write_registers(1, [215, 80])
answer = await client.read_holding_registers(1, count=2)
client.close()
await server.shutdown()
result = answer.registers
