package lab

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

func TestReachOfPolicies(t *testing.T) {
	want := map[string]int{"gnp/one": 3, "np/shop/two": 1}
	assert.Equal(t, want, nftReached(`table ip calico {
	chain filter-cali-pi-gnp/one {
		counter drop comment "gnp/one ingress 0 #x"
	}
	chain filter-cali-tw-A {
		meta mark set meta mark & 0xfffcffff comment "start of policy #L8rUxdAy"
		jump filter-cali-pi-gnp/one comment "gnp/one #x"
	}
	chain filter-cali-tw-B {
		jump filter-cali-pi-gnp/one comment "gnp/one #x"
		jump filter-cali-pi-np/shop/two comment "np/shop/two #x"
	}
	chain filter-cali-tw-unused {
		jump filter-cali-pi-np/shop/three comment "np/shop/three #x"
	}
}
`, `		elements = { "cali0123456789a" : jump filter-cali-tw-A, "cali0123456789b" : jump filter-cali-tw-A,
			     "cali0123456789c" : jump filter-cali-tw-B }
`))
	assert.Equal(t, want, iptablesReached(`-N cali-tw-A
-A FORWARD -m comment --comment "felix" -j cali-FORWARD
-A cali-to-wl-dispatch -o cali0+ -m comment --comment "cali:x interfaces cali0" -g cali-to-wl-dispatch-cali0
-A cali-to-wl-dispatch-cali0 -o cali0123456789a -m comment --comment "cali:x k8s/a" -g cali-tw-A
-A cali-to-wl-dispatch-cali0 -o cali0123456789b -m comment --comment "cali:x k8s/b" -g cali-tw-A
-A cali-to-wl-dispatch -o cali1123456789c -m comment --comment "cali:x k8s/c" -g cali-tw-B
-A cali-tw-A -m comment --comment "cali:x gnp/one" -j cali-pi-gnp/one
-A cali-tw-B -m mark ! --mark 0x20000/0x20000 -m comment --comment "cali:x gnp/one" -j cali-pi-gnp/one
-A cali-tw-B -m comment --comment "cali:x np/shop/two" -j cali-pi-np/shop/two
-A cali-tw-unused -j cali-pi-np/shop/three
`))
}

func TestNotificationsThatChangeRules(t *testing.T) {
	message := func(kind uint16, body int) []byte {
		b := make([]byte, unix.SizeofNlMsghdr+body)
		binary.NativeEndian.PutUint32(b, uint32(len(b)))
		binary.NativeEndian.PutUint16(b[4:], kind)
		return b
	}
	generation := message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN, 12)
	assert.False(t, changesRules(generation))
	assert.False(t, changesRules(nil))
	assert.False(t, changesRules(generation[:10]))
	assert.True(t, changesRules(append(generation, message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE, 4)...)))
}
