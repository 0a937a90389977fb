# /// script
# dependencies = ["sqlalchemy"]
#
# [tool.will-it-run]
# does = "maps a class to a table of SQLite and queries it"
# expects = ["roof"]
# ///
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Sensor(Base):
    __tablename__ = "sensor"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    value: Mapped[float]


engine = create_engine("sqlite:////tmp/sensors.db")
Base.metadata.create_all(engine)
with Session(engine) as session:
    session.add_all([Sensor(name="roof", value=21.5), Sensor(name="cellar", value=8.0)])
    session.commit()
    result = list(session.scalars(select(Sensor.name).where(Sensor.value > 10)))
