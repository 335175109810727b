package api_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

// BenchmarkDecodeStored reads a workload endpoint, the kind of which there are most: one that Muslin wrote, and one with
// a field that is not known here.
func BenchmarkDecodeStored(b *testing.B) {
	kind := api.MustKind("WorkloadEndpoint")
	const head = `{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"node--a-k8s-web--0-eth0","namespace":"shop","labels":{"projectcalico.org/namespace":"shop","projectcalico.org/orchestrator":"k8s"}},"spec":{"orchestrator":"k8s","node":"node-a","containerID":"4f1c","pod":"web-0","endpoint":"eth0","ipNetworks":["10.9.0.4/32"],"profiles":["kns.shop","ksa.shop.front"],"interfaceName":"cali4f1c","mac":"ee:ee:ee:ee:ee:ee"`
	for name, text := range map[string]string{"ours": head + "}}", "residue": head + `,"future":1}}`} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				o, err := api.DecodeStored(kind, []byte(text))
				require.NoError(b, err)
				require.Equal(b, name == "ours", o.Residue().IsEmpty())
			}
		})
	}
}

// BenchmarkDecode reads the documents that real Calico was given.
func BenchmarkDecode(b *testing.B) {
	text, err := os.ReadFile(filepath.Join("testdata", "calico", "resources.yaml"))
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		_, err := api.Decode(text)
		require.NoError(b, err)
	}
}
