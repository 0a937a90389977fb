# /// script
# dependencies = ["aiohttp"]
#
# [tool.will-it-run]
# does = "serves and fetches a page over a WebSocket and HTTP, on loopback"
# expects = ["hello", "HELLO"]
# ///
from aiohttp import ClientSession, web


async def page(request):
    return web.Response(text="hello")


async def shout(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_str((await socket.receive_str()).upper())
    await socket.close()
    return socket


app = web.Application()
app.add_routes([web.get("/", page), web.get("/socket", shout)])
runner = web.AppRunner(app)
await runner.setup()
await web.TCPSite(runner, "127.0.0.1", 8080).start()
async with ClientSession("http://127.0.0.1:8080") as session:
    async with session.get("/") as answer:
        text = await answer.text()
    async with session.ws_connect("/socket") as socket:
        await socket.send_str("hello")
        shouted = await socket.receive_str()
await runner.cleanup()
result = [text, shouted]
