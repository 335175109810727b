package diags_test

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/calicoctl/diags"
)

func TestClean(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		// secrets, as logs and configurations write them
		`password: hunter2`: `password: <removed>`,
		`level=INFO msg=peer passphrase=hunter2 up=true`:         `level=INFO msg=peer passphrase=<removed> up=true`,
		`{"k8s_auth_token": "abc.def", "type": "calico"}`:        `{"k8s_auth_token": "<removed>", "type": "calico"}`,
		`{"log":"ETCD_PASSWORD=\"hunter2\" set"}`:                `{"log":"ETCD_PASSWORD=\"<removed>\" set"}`,
		`client-key-data: LS0tLS1CRUdJTg==`:                      `client-key-data: <removed>`,
		`Authorization: Bearer eyJhbGciOi.eyJpc3MiOiJr.c2lnbmF0`: `Authorization: Bearer <removed>`,
		`got eyJhbGciOiJSUzI1NiIs.eyJpc3MiOiJrdWJl.c2ln-bmF_0 x`: `got <removed> x`,
		`etcd at https://root:hunter2@10.0.0.1:2379/`:            `etcd at https://root:<removed>@10.0.0.1:2379/`,
		`  password "hunter2 and more";`:                         `  password "<removed>";`,
		`etcdPassword: "hunter2 and more"`:                       `etcdPassword: "<removed>"`,
		`secret_access_key = hunter2`:                            `secret_access_key = <removed>`,
		// and what is none
		`session waits: Secret tor, key password`:       `session waits: Secret tor, key password`,
		`passwordSecretRef: {name: tor, key: password}`: `passwordSecretRef: {name: tor, key: password}`,
		`password:`: `password:`,
		`inet6 fe80::ecee:eeff:feee:eeee/64 scope link`:       `inet6 fe80::ecee:eeff:feee:eeee/64 scope link`,
		`felix_policy_rule_packets_total{policy="web"} 12`:    `felix_policy_rule_packets_total{policy="web"} 12`,
		`default via 10.30.0.1 dev eth0 proto static`:         `default via 10.30.0.1 dev eth0 proto static`,
		`dial tcp 10.0.0.1:5473: connect: connection refused`: `dial tcp 10.0.0.1:5473: connect: connection refused`,
	} {
		require.Equal(t, want, diags.Clean(line))
	}
}

const keyed = "before\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\nhunter2\n-----END EC PRIVATE KEY-----\nafter\n" +
	`{"key":"-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n"}` + "\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\ntoken: hunter2"

// However a text is cut into writes, the same is left of it.
func TestCleanerInPieces(t *testing.T) {
	t.Parallel()
	var want bytes.Buffer
	c := diags.NewCleaner(&want)
	_, err := c.Write([]byte(keyed))
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.Equal(t, "before\n<removed>\nafter\n"+`{"key":"<removed>`+"\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\ntoken: <removed>", want.String())
	for range 1000 {
		var got bytes.Buffer
		c := diags.NewCleaner(&got)
		for rest := keyed; rest != ""; {
			n := min(1+rand.IntN(40), len(rest))
			wrote, err := c.Write([]byte(rest[:n]))
			require.NoError(t, err)
			require.Equal(t, n, wrote)
			rest = rest[n:]
		}
		require.NoError(t, c.Close())
		require.Equal(t, want.String(), got.String())
	}
}

// A line without end does not fill the memory.
func TestCleanerOfOneLongLine(t *testing.T) {
	t.Parallel()
	var got bytes.Buffer
	c := diags.NewCleaner(&got)
	for range 64 {
		_, err := c.Write([]byte(strings.Repeat("x", 1<<16)))
		require.NoError(t, err)
	}
	require.GreaterOrEqual(t, got.Len(), 1<<20, "it is passed on before its end")
	require.NoError(t, c.Close())
	require.Equal(t, 4<<20, got.Len())
}
