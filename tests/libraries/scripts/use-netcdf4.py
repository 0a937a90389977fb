# /// script
# dependencies = ["netCDF4"]
#
# [tool.will-it-run]
# library = "netCDF4"
# does = "writes a dataset with a time axis and reads it"
# expects = ["2026-01-02 00:00:00", 3.0]
# ///
import netCDF4

with netCDF4.Dataset("/tmp/data.nc", "w") as file:
    file.createDimension("time", None)
    time = file.createVariable("time", "f8", ("time",))
    time.units = "days since 2026-01-01"
    time[:] = [0, 1]
    file.createVariable("level", "f4", ("time",), zlib=True)[:] = [2, 3]
with netCDF4.Dataset("/tmp/data.nc") as file:
    when = netCDF4.num2date(file["time"][:], file["time"].units)
    result = [str(when[1]), float(file["level"][1])]
