package kubernetes

import (
	"encoding/json"
	"testing"

	"github.com/muslin-net/muslin/api"
)

// FuzzDecode reads whatever a server may send: what can be read can be written, and is then what it was.
func FuzzDecode(f *testing.F) {
	for _, text := range []string{
		`{"kind":"GlobalNetworkPolicy","metadata":{"name":"default.a","annotations":{"projectcalico.org/metadata":"{\"labels\":{\"a\":\"b\"}}"}},"spec":{"tier":"default"}}`,
		`{"kind":"BlockAffinity","metadata":{"name":"a-10-0-0-0-26"},"spec":{"node":"a","cidr":"10.0.0.0/26","state":"confirmed","deleted":"true"}}`,
		`{"kind":"IPAMBlock","metadata":{"name":"10-0-0-0-30"},"spec":{"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"unallocated":[1],"attributes":[{}],"strictAffinity":false}}`,
		`{"kind":"IPPool","metadata":{"ownerReferences":[{"apiVersion":"crd.projectcalico.org/v1","uid":"x"}]},"spec":null,"status":{}}`,
		`{"kind":"IPAMConfig","metadata":{"annotations":{"projectcalico.org/metadata":"null"}}}`, `{}`, `[]`, `null`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := &document{}
		if json.Unmarshal([]byte(text), d) != nil {
			return
		}
		for _, l := range []*layout{{group: nativeGroup}, {group: classicGroup, classic: true}} {
			for _, kind := range api.Kinds() {
				it, err := l.decode(kind, d)
				if err != nil {
					continue
				}
				body, err := l.encode(kind, it.object, d.Name)
				if err != nil {
					t.Fatalf("%s was read and cannot be written: %v", kind.Name, err)
				}
				again := &document{}
				if err := json.Unmarshal(body, again); err != nil {
					t.Fatal(err)
				}
				back, err := l.decode(kind, again)
				if err != nil || back.key != it.key {
					t.Fatalf("%s %v became %v: %v", kind.Name, it.key, back.key, err)
				}
			}
		}
	})
}
