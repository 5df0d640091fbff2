"""The other ends of the wire, for tests: stand-ins and real parts. No test and no product code lives here."""
