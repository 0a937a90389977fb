# /// script
# dependencies = ["faker"]
#
# [tool.will-it-run]
# does = "makes up the same persons for the same seed, in two languages"
# expects = [true, 2]
# ///
from faker import Faker

fake = Faker(["de_DE", "fr_FR"])
Faker.seed(1)
first = [fake.name() for _ in range(3)]
Faker.seed(1)
result = [first == [fake.name() for _ in range(3)], len(fake.locales)]
print(first, fake.address())
