package ctnetlink

import (
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
)

// FuzzEntry checks that parsing any message does not panic.
func FuzzEntry(f *testing.F) {
	nested := func(typ uint16, of ...netlink.Attribute) netlink.Attribute {
		return netlink.Attribute{Type: typ, Data: nltest.MustMarshalAttributes(of)}
	}
	f.Add(append(make([]byte, sizeofNfgenmsg), nltest.MustMarshalAttributes([]netlink.Attribute{
		nested(attrTupleOrig,
			nested(attrTupleIP, netlink.Attribute{Type: attrIPv4Source, Data: []byte{192, 0, 2, 1}}),
			nested(attrTupleProto, netlink.Attribute{Type: attrProtoNumber, Data: []byte{6}}, netlink.Attribute{Type: attrSourcePort, Data: []byte{1, 2}}),
		),
		nested(attrProtoInfo, nested(attrInfoTCP, netlink.Attribute{Type: attrTCPState, Data: []byte{3}})),
	})...))
	f.Add([]byte{2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Entry
		if err := e.parse(b); err == nil && e.State.String() == "" {
			t.Errorf("%+v", e)
		}
	})
}
