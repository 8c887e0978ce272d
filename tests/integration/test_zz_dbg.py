from tests.integration.conftest import *
def test_x(fleet):
    import time
    node=fleet.node
    for i in range(3):
        t=time.time()
        r=node.ask(node.chat("paid"), headers={"x-fednode-privacy": "home"})
        print(time.time()-t, r.body, r.headers)
        print(node.receipt(r.headers["x-fednode-request-id"]))
        fleet.a.fault("status",status=500); node.ask(node.chat("m-a"))
    assert 0
