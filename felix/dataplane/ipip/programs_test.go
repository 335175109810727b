package ipip

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestBytecodeIsOfTheSource(t *testing.T) {
	source, err := os.ReadFile("bpf/ipip.c")
	require.NoError(t, err)
	sum, err := os.ReadFile("bpf/ipip.sum")
	require.NoError(t, err)
	is := sha256.Sum256(source)
	assert.Equal(t, hex.EncodeToString(is[:]), strings.Fields(string(sum))[0], "ipip.c was changed: run make gen-bpf")
}

func TestLayoutsAreThoseOfTheBytecode(t *testing.T) {
	spec, err := specification()
	require.NoError(t, err)
	size := func(v any) uint32 { return uint32(binary.Size(v)) }
	assert.Equal(t, size(config{}), spec.Maps["ipip_config"].ValueSize)
	assert.Equal(t, size(destination{}), spec.Maps["ipip_encaps"].KeySize)
	assert.Equal(t, size(node{}), spec.Maps["ipip_encaps"].ValueSize)
	assert.Equal(t, size(node{}), spec.Maps["ipip_decaps"].KeySize)
	assert.Len(t, counters, int(spec.Maps["ipip_counters"].MaxEntries))
	assert.Len(t, spec.Maps, 4)
	assert.Contains(t, spec.Programs, outHook.program)
	assert.Contains(t, spec.Programs, inHook.program)
}

func TestDestinationsAreWrittenAndReadAlike(t *testing.T) {
	for _, text := range []string{"0.0.0.0/0", "10.1.2.0/26", "10.1.2.3/32"} {
		p := netip.MustParsePrefix(text)
		assert.Equal(t, p, destinationOf(p).prefix())
	}
	assert.Equal(t, "10.1.2.0/26", destinationOf(netip.MustParsePrefix("10.1.2.9/26")).prefix().String())
}
