package verb

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/internal/rpc"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
	typhaclient "github.com/muslin-net/muslin/typha/client"
)

// accountant is a felix that has one endpoint.
type accountant struct{ felix }

func (accountant) Endpoints(_ context.Context, m *felixv1.EndpointsRequest) (*felixv1.EndpointsResponse, error) {
	if m.GetEndpoint() == "edge" {
		return &felixv1.EndpointsResponse{Endpoints: []*felixv1.Endpoint{{
			Id: "host/edge", Interface: "eth0", Addresses: [][]byte{{10, 30, 0, 206}}, FailsafeIn: []string{"tcp/22", "udp/68"},
			Policies: []*felixv1.PolicyCounter{
				{Pass: "preDNAT", Tier: "default", Policy: "gnp/early", Action: "Deny", Match: "tcp to ports 9999", Packets: 2, Bytes: 120},
				{Pass: "normal", Tier: "default", Rule: -1, Action: "Deny", Packets: 1, Bytes: 60},
				{Pass: "normal", Rule: -1, Egress: true, Action: "Deny"},
			},
		}}}, nil
	}
	if m.GetEndpoint() != "shop/web" {
		return &felixv1.EndpointsResponse{}, nil
	}
	return &felixv1.EndpointsResponse{Endpoints: []*felixv1.Endpoint{{
		Id: "k8s/shop/web/eth0", Interface: "cali1", Addresses: [][]byte{{10, 0, 0, 1}}, ClosedBecause: []string{"profile pro/x is not known"},
		Policies: []*felixv1.PolicyCounter{
			{Tier: "default", Policy: "np/shop/web", Action: "Log"},
			{Tier: "default", Policy: "np/shop/web", Rule: 1, Action: "Allow", Match: "tcp to ports 80", Packets: 7, Bytes: 420},
			{Tier: "default", Policy: "snp/shop/try", Action: "Deny", Staged: true, Packets: 2, Bytes: 120},
			{Tier: "default", Policy: "np/shop/empty", Rule: -1},
			{Tier: "default", Rule: -1, Action: "Deny", Packets: 1, Bytes: 60},
			{Policy: "pro/x", Egress: true, Action: "Allow"},
			{Rule: -1, Egress: true, Action: "Deny"},
		},
	}}}, nil
}

func TestPolicyShow(t *testing.T) {
	dir := t.TempDir()
	socket, name := filepath.Join(dir, "felix.sock"), filepath.Join(dir, "nodename")
	require.NoError(t, os.WriteFile(name, []byte("one\n"), 0o600))
	l, err := rpc.ListenUnix(socket)
	require.NoError(t, err)
	g := grpc.NewServer()
	felixv1.RegisterStateServiceServer(g, accountant{})
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	run := func(args ...string) (int, string, string) {
		var out, errs strings.Builder
		args = append([]string{"policy", "show"}, append(args, "--node", "one", "--node-name-file", name, "--felix-socket", socket)...)
		code := Run(t.Context(), "devel", args, strings.NewReader(""), &out, &errs)
		return code, out.String(), errs.String()
	}
	code, out, errs := run("shop/web")
	require.Zero(t, code, errs)
	var lines []string
	for line := range strings.Lines(out) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	assert.Equal(t, `k8s/shop/web/eth0 (cali1, 10.0.0.1)
CLOSED: profile pro/x is not known

Ingress:
TIER      POLICY          RULE     ACTION   MATCH             PACKETS   BYTES
default   np/shop/web     0        Log      everything        -         -
default   np/shop/web     1        Allow    tcp to ports 80   7         420
default   snp/shop/try    0        (Deny)   everything        2         120
default   np/shop/empty   (none)   -        -                 -         -
default   (end of tier)   -        Deny     -                 1         60


Egress:
TIER   POLICY   RULE   ACTION   MATCH        PACKETS   BYTES
-      pro/x    0      Allow    everything   0         0
-      (end)    -      Deny     -            0         0

`, strings.Join(lines, "\n")+"\n")
	code, out, _ = run("shop/web", "-o", "yaml")
	require.Zero(t, code)
	assert.Contains(t, out, "- action: Allow\n    bytes: 420\n    match: tcp to ports 80\n    packets: 7\n    policy: np/shop/web\n    rule: 1\n    tier: default\n")
	code, out, errs = run("edge")
	require.Zero(t, code, errs)
	lines = nil
	for line := range strings.Lines(out) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	assert.Equal(t, `host/edge (eth0, 10.30.0.206)
Always open in:  tcp/22, udp/68
Always open out: -

Ingress:
PASS      TIER      POLICY          RULE   ACTION   MATCH               PACKETS   BYTES
preDNAT   default   gnp/early       0      Deny     tcp to ports 9999   2         120
normal    default   (end of tier)   -      Deny     -                   1         60


Egress:
PASS     TIER   POLICY   RULE   ACTION   MATCH   PACKETS   BYTES
normal   -      (end)    -      Deny     -       0         0

`, strings.Join(lines, "\n")+"\n")
	code, _, errs = run("shop/db")
	assert.Equal(t, 1, code)
	assert.Equal(t, "endpoint \"shop/db\" is not on node one\n", errs)
}

func TestPortsOfEval(t *testing.T) {
	for text, want := range map[string]typhaclient.Packet{
		"tcp/443": {Protocol: 6, Port: 443}, "443": {Protocol: 6, Port: 443}, "UDP/53": {Protocol: 17, Port: 53}, "icmp": {Protocol: 1},
		"icmp/8": {Protocol: 1, ICMP: &view.ICMP{Type: 8}}, "icmpv6/128/0": {Protocol: 58, ICMP: &view.ICMP{Type: 128, Code: new(uint8)}},
		"1/0":        {Protocol: 1, ICMP: &view.ICMP{}},
		"sctp/36412": {Protocol: 132, Port: 36412}, "132/7": {Protocol: 132, Port: 7}, "icmpv6": {Protocol: 58},
	} {
		got, err := packetOf("", "", text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "tcp/", "tcp/70000", "nonsense/1", "tcp/http", "icmp/", "icmp/256", "icmp/echo", "icmp/8/", "icmp/8/256", "icmp/8/0/0"} {
		_, err := packetOf("", "", text)
		require.ErrorContains(t, err, "flag --port", text)
	}
}

func TestNamesOfEndpoints(t *testing.T) {
	w := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{
		Orchestrator: "k8s", Pod: "web", Endpoint: "eth0", InterfaceName: "cali1", IPNetworks: []string{"10.0.0.1/32", "fd00::1/128"},
	}}
	w.Namespace = "shop"
	assert.ElementsMatch(t, []string{"cali1", "shop/web", "k8s/shop/web/eth0", "10.0.0.1", "fd00::1"}, namesOf(w))
}

func TestEvalNeedsAWayToTypha(t *testing.T) {
	var out, errs strings.Builder
	code := Run(t.Context(), "devel", []string{"policy", "eval", "--from", "a/b", "--to", "c/d", "--port", "80", "--typha", ""}, strings.NewReader(""), &out, &errs)
	assert.Equal(t, 1, code)
	assert.Contains(t, errs.String(), "where typha is, is not known")
}

func TestEvalShowsPasses(t *testing.T) {
	var out strings.Builder
	printEval(&out, evalReport{From: "a", To: "b", Port: "80", Decisions: decisionReports([]typhaclient.Decision{
		{Endpoint: "host/edge", Pass: "preDNAT", By: "gnp/early", Rule: 0},
		{Endpoint: "k8s/shop/web/eth0", Allowed: true, By: "np/shop/web", Rule: 1},
	})})
	var lines []string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	assert.Equal(t, []string{
		"a to b, 80: denied", "",
		"ENDPOINT            DIRECTION   PASS      VERDICT   BY            RULE",
		"host/edge           ingress     preDNAT   denied    gnp/early     0",
		"k8s/shop/web/eth0   ingress     -         allowed   np/shop/web   1",
	}, lines[:5])
}
