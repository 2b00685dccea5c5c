"""Contract suites for whoever writes a backbone or a store format.

A suite is a class of pytest tests. A test module of yours inherits it and names what to test:

    from hada.extract.testing.backbone_contract import BackboneContract

    class TestMine(BackboneContract):
        @pytest.fixture(scope="class")
        @classmethod
        def backbone(cls):
            return my_package.load(...)

Importing these modules needs pytest, which HADA itself does not install.
"""
