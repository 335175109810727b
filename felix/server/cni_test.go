package server_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

func code(err error) codes.Code { return status.Code(err) }

func TestAddWiresInOrder(t *testing.T) {
	w := newWorld()
	resp := added(t, w.server(), pod("web-0", "c1"))
	require.Equal(t, []string{"Cancel", "Assign", "Save", "Wire", "Sure", "SetLocal"}, w.steps)
	require.Equal(t, []string{"Cancel", "Assign"}, w.foretold, "its policy comes while the record is written and the interface made")
	require.Equal(t, "cali", resp.GetHostInterface()[:4])
	require.Len(t, resp.GetHostInterface(), 15)
	require.Regexp(t, "^[0-9a-f][26ae](:[0-9a-f]{2}){5}$", resp.GetMac(), "of one interface, and of nobody's making")
	require.Equal(t, uint32(1450), resp.GetMtu(), "the MTU for pods where the configuration names none")
	require.Len(t, resp.GetAddresses(), 2)
	e := w.records[resp.GetHostInterface()]
	require.Equal(t, "k8s/shop/web-0/eth0", e.ID.String())
	require.Equal(t, w.local[resp.GetHostInterface()], e, "a restart must know all of it")
	require.Empty(t, e.Profiles, "Kubernetes' profiles come from the pod")
}

func TestAddOutsideKubernetes(t *testing.T) {
	w := newWorld()
	req := pod("", "0123456789abcdef")
	req.Args, req.Config.Mtu, req.Config.Labels = nil, 1300, map[string]string{"app": "db"}
	resp := added(t, w.server(), req)
	require.Equal(t, "cali0123456789a", resp.GetHostInterface())
	e := w.local["cali0123456789a"]
	require.Equal(t, "cni/default/0123456789abcdef/eth0", e.ID.String())
	require.Equal(t, []string{"net"}, e.Profiles)
	require.Equal(t, 1300, e.MTU)
	require.Equal(t, map[string]string{"app": "db"}, e.Labels)
}

// Whatever step of ADD fails, before or after its effect, nothing stays behind; and the next ADD succeeds.
func TestAddThatFailsLeavesNothingBehind(t *testing.T) {
	probe := newWorld()
	added(t, probe.server(), pod("web-0", "c1"))
	for k := range len(probe.steps) {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d-%s-after-%v", k+1, probe.steps[k], after), func(t *testing.T) {
				w := newWorld()
				w.failAt, w.after = k+1, after
				s := w.server()
				_, err := s.Add(t.Context(), pod("web-0", "c1"))
				require.ErrorContains(t, err, errBroken.Error())
				require.Equal(t, codes.Internal, code(err))
				require.Empty(t, w.leftovers(), "steps %v", w.steps)
				added(t, s, pod("web-0", "c1"))
				require.Len(t, w.records, 1)
				require.Empty(t, w.releases, "what is in use again is not freed")
			})
		}
	}
}

// The caller gave up meanwhile: what was begun is taken back all the same.
func TestAddThatIsCancelledLeavesNothingBehind(t *testing.T) {
	w := newWorld()
	ctx, cancel := context.WithCancel(t.Context())
	w.exclude = func(string) { cancel() }
	_, err := w.server().Add(ctx, pod("web-0", "c1"))
	require.Equal(t, codes.Unavailable, code(err), "%v", err)
	require.Empty(t, w.leftovers())
}

func TestAddAgainIsTheSame(t *testing.T) {
	w := newWorld()
	s := w.server()
	first := added(t, s, pod("web-0", "c1"))
	again := added(t, s, pod("web-0", "c1"))
	require.True(t, proto.Equal(first, again), "%v, then %v", first, again)
	require.Len(t, w.assigned, 1)

	// A failure of the second does not take down what the first set up.
	w.failAt = len(w.steps) + 1
	_, err := s.Add(t.Context(), pod("web-0", "c1"))
	require.Error(t, err)
	require.Len(t, w.local, 1)
	require.Len(t, w.links, 1)
	require.Empty(t, w.releases)
}

func TestANewSandboxTakesOverAndALateDeleteOfTheOldOneDoesNotHurt(t *testing.T) {
	w := newWorld()
	s := w.server()
	old := added(t, s, pod("web-0", "c1"))
	fresh := added(t, s, pod("web-0", "c2"))
	require.Equal(t, old.GetHostInterface(), fresh.GetHostInterface())
	require.NotEqual(t, old.GetAddresses(), fresh.GetAddresses())
	require.Equal(t, map[string]bool{"net.c1": true}, w.releases)
	before := len(w.steps)
	_, err := s.Delete(t.Context(), del(pod("web-0", "c1")))
	require.NoError(t, err)
	require.Equal(t, []string{"Release"}, w.steps[before:])
	require.Equal(t, "c2", w.local[fresh.GetHostInterface()].ContainerID)
	require.False(t, w.releases["net.c2"])
}

func TestASecondInterfaceOfAPodIsRefusedAndDoesNotHurtTheFirst(t *testing.T) {
	w := newWorld()
	s := w.server()
	added(t, s, pod("web-0", "c1"))
	second := pod("web-0", "c1")
	second.Attachment.Interface = "net1"
	_, err := s.Add(t.Context(), second)
	require.Equal(t, codes.InvalidArgument, code(err))
	require.ErrorContains(t, err, "is that of endpoint k8s/shop/web-0/eth0 already")
	_, err = s.Delete(t.Context(), del(second))
	require.NoError(t, err)
	require.Len(t, w.local, 1)
	require.Empty(t, w.releases, "the handle is that of the first interface")
}

// Outside Kubernetes the interface is named by the beginning of the container's id only.
func TestAnotherContainersInterfaceIsNotTaken(t *testing.T) {
	w := newWorld()
	s := w.server()
	one, two := pod("", "same-beginning-1"), pod("", "same-beginning-2")
	one.Args, two.Args = nil, nil
	added(t, s, one)
	_, err := s.Add(t.Context(), two)
	require.ErrorContains(t, err, "cni/default/same-beginning-1/eth0 already")
	_, err = s.Delete(t.Context(), del(two))
	require.NoError(t, err)
	require.Equal(t, "same-beginning-1", w.local["calisame-beginn"].ContainerID)
}

func TestDeleteTakesEverythingAway(t *testing.T) {
	w := newWorld()
	s := w.server()
	added(t, s, pod("web-0", "c1"))
	before := len(w.steps)
	_, err := s.Delete(t.Context(), del(pod("web-0", "c1")))
	require.NoError(t, err)
	require.Equal(t, []string{"Save", "DeleteLocal", "Unwire", "Forgotten", "Release", "Delete"}, w.steps[before:])
	require.Empty(t, w.leftovers())
	_, err = s.Delete(t.Context(), del(pod("web-0", "c1")))
	require.NoError(t, err, "again, as the runtime may")
}

func TestDeleteOfTheUnknownSucceeds(t *testing.T) {
	w := newWorld()
	req := del(pod("never", "c9"))
	req.Netns = ""
	_, err := w.server().Delete(t.Context(), req)
	require.NoError(t, err)
	require.True(t, w.releases["net.c9"], "an address without endpoint is freed")
}

// A DEL that fails halfway is repeated by the runtime, and then finishes; a disk that takes no writes does not fail it, nor do
// connections that stay.
func TestDeleteThatFailsCanBeRepeated(t *testing.T) {
	steps := []string{"Save", "DeleteLocal", "Unwire", "Forgotten", "Release", "Delete"}
	for k, step := range steps {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s-after-%v", step, after), func(t *testing.T) {
				w := newWorld()
				s := w.server()
				added(t, s, pod("web-0", "c1"))
				w.failAt, w.after = len(w.steps)+k+1, after
				_, err := s.Delete(t.Context(), del(pod("web-0", "c1")))
				switch step {
				case "Save", "Forgotten":
					require.NoError(t, err)
				case "Release":
					require.NoError(t, err)
					require.Len(t, w.leftovers(), 1, "the record, by which a restart knows of it")
					return
				default:
					require.ErrorContains(t, err, errBroken.Error())
					_, err = s.Delete(t.Context(), del(pod("web-0", "c1")))
					require.NoError(t, err)
				}
				require.Empty(t, w.leftovers())
			})
		}
	}
}

func TestAddressesGivenByAnotherPluginAreTaken(t *testing.T) {
	w := newWorld()
	req := pod("web-0", "c1")
	req.Config.Addresses = [][]byte{{10, 9, 8, 7}}
	resp := added(t, w.server(), req)
	require.Equal(t, [][]byte{{10, 9, 8, 7}}, resp.GetAddresses())
	require.NotContains(t, w.steps, "Assign")
	req = pod("web-1", "c2")
	req.Config.Addresses = [][]byte{{10, 9, 8}}
	_, err := w.server().Add(t.Context(), req)
	require.Equal(t, codes.InvalidArgument, code(err))
	require.ErrorContains(t, err, "an address of 3 bytes was given")
}

func TestBadRequestsAreRefused(t *testing.T) {
	for want, change := range map[string]func(*felixv1.AddRequest){
		"lacks network, container id or interface": func(r *felixv1.AddRequest) { r.Attachment.ContainerId = "" },
		"an address of 3 bytes was given":          func(r *felixv1.AddRequest) { r.Config.Fixed = [][]byte{{1, 2, 3}} },
		`route "nonsense" is not a CIDR`:           func(r *felixv1.AddRequest) { r.Config.Routes = []string{"nonsense"} },
		`source "10.0.0.0" is not a CIDR`:          func(r *felixv1.AddRequest) { r.Config.AllowedSourcePrefixes = []string{"10.0.0.0"} },
		`address "02:00" has 2 parts`:              func(r *felixv1.AddRequest) { r.Config.Mac = "02:00" },
		"asks for neither IPv4 nor IPv6":           func(r *felixv1.AddRequest) { r.Config.AssignIpv4, r.Config.AssignIpv6 = false, false },
	} {
		w := newWorld()
		req := pod("web-0", "c1")
		change(req)
		_, err := w.server().Add(t.Context(), req)
		require.Equal(t, codes.InvalidArgument, code(err))
		require.ErrorContains(t, err, want)
		require.Empty(t, w.leftovers())
	}
	req := pod("web-0", "c1")
	req.Config.Fixed = [][]byte{{10, 1, 2, 3}}
	require.Equal(t, [][]byte{{10, 1, 2, 3}}, added(t, newWorld().server(), req).GetAddresses())
}

func TestAPodWithoutANamespaceTakesNothing(t *testing.T) {
	w := newWorld()
	w.netnsErr = errors.New("network namespace /run/netns/nowhere of the pod: no such file or directory")
	_, err := w.server().Add(t.Context(), pod("web-0", "c1"))
	require.Equal(t, codes.NotFound, code(err))
	require.ErrorContains(t, err, "/run/netns/nowhere")
	require.Empty(t, w.steps, "nothing was begun")
}

func TestNotReadyMeansTryAgain(t *testing.T) {
	w := newWorld()
	w.ready = []string{"typha has not sent the node's view"}
	s := w.server()
	_, err := s.Add(t.Context(), pod("web-0", "c1"))
	require.Equal(t, codes.Unavailable, code(err))
	require.ErrorContains(t, err, w.ready[0])
	st, err := s.Status(t.Context(), nil)
	require.NoError(t, err)
	require.True(t, proto.Equal(&felixv1.StatusResponse{Reasons: w.ready, Software: "test"}, st))
	_, err = s.Delete(t.Context(), del(pod("web-0", "c1")))
	require.NoError(t, err, "pods can always be deleted")
}

func TestAPodWhosePolicyIsUnknownStartsClosedOrNotAtAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.open, w.missing = false, errors.New("typha has not sent this endpoint's policy")
		s := w.server()
		req := pod("web-0", "c1")
		req.Config.PolicyWait = nil
		begin := time.Now()
		require.True(t, added(t, s, req).GetClosed())
		require.Equal(t, 2*time.Second, time.Since(begin))

		req = pod("web-1", "c2")
		req.Config.RequirePolicy, req.Config.PolicyWait = true, durationpb.New(7*time.Second)
		begin = time.Now()
		_, err := s.Add(t.Context(), req)
		require.Equal(t, 7*time.Second, time.Since(begin))
		require.Equal(t, codes.Aborted, code(err), "felix itself is there: it is no use to ask it again at once")
		require.ErrorContains(t, err, "typha has not sent")
		require.Len(t, w.local, 1, "only the first pod is there")
		require.True(t, w.releases["net.c2"])
	})
}

func TestCheckNamesTheDifference(t *testing.T) {
	w := newWorld()
	s := w.server()
	add := pod("web-0", "c1")
	resp := added(t, s, add)
	req := func() *felixv1.CheckRequest {
		return &felixv1.CheckRequest{
			Attachment: proto.CloneOf(add.GetAttachment()), Netns: add.GetNetns(), Addresses: resp.GetAddresses(), Mac: resp.GetMac(),
		}
	}
	_, err := s.Check(t.Context(), req())
	require.NoError(t, err)
	for want, change := range map[string]func(*felixv1.CheckRequest){
		"has addresses":                      func(r *felixv1.CheckRequest) { r.Addresses = r.GetAddresses()[:1] },
		"the result of ADD had 00:00":        func(r *felixv1.CheckRequest) { r.Mac = "00:00:00:00:00:01" },
		"container c2 has no interface eth0": func(r *felixv1.CheckRequest) { r.Attachment.ContainerId = "c2" },
		"container c1 has no interface net1": func(r *felixv1.CheckRequest) { r.Attachment.Interface = "net1" },
		"the default route of eth0 is gone":  func(*felixv1.CheckRequest) { w.checkErr = errors.New("the default route of eth0 is gone") },
	} {
		w.checkErr = nil
		r := req()
		change(r)
		_, err := s.Check(t.Context(), r)
		require.Equal(t, codes.FailedPrecondition, code(err))
		require.ErrorContains(t, err, want)
	}
}

func TestGcRemovesWhatIsNotListed(t *testing.T) {
	w := newWorld()
	s := w.server()
	added(t, s, pod("keep", "c1"))
	added(t, s, pod("gone", "c2"))
	bare := pod("", "c3-outside-kubernetes")
	bare.Args = nil
	added(t, s, bare)
	other := pod("other", "c4")
	other.Attachment.Network = "another-net"
	added(t, s, other)
	resp, err := s.Gc(t.Context(), &felixv1.GcRequest{Network: "net", Valid: []*felixv1.Attachment{{ContainerId: "c1", Interface: "eth0"}}})
	require.NoError(t, err)
	require.Len(t, resp.GetRemoved(), 2)
	var left []string
	for _, e := range w.local {
		left = append(left, e.ContainerID)
	}
	require.ElementsMatch(t, []string{"c1", "c4"}, left)

	added(t, s, pod("gone", "c2"))
	w.failAt = len(w.steps) + 2
	_, err = s.Gc(t.Context(), &felixv1.GcRequest{Network: "net"})
	require.ErrorContains(t, err, errBroken.Error())
}

// Calls for one interface wait for each other, those for others do not.
func TestCallsForOneInterfaceAreSerialised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.server()
		hold := make(chan struct{})
		w.exclude = func(iface string) {
			if strings.HasPrefix(iface, "calislow") {
				<-hold
			}
		}
		slow, fast := pod("", "slow-container"), pod("", "fast-container")
		slow.Args, fast.Args = nil, nil
		var group sync.WaitGroup
		for range 3 {
			group.Go(func() { _, _ = s.Add(t.Context(), slow) })
			group.Go(func() { _, _ = s.Delete(t.Context(), del(slow)) })
		}
		synctest.Wait()
		added(t, s, fast) // does not wait
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Add(impatient, slow)
		require.Equal(t, codes.Unavailable, code(err))
		require.ErrorContains(t, err, "another call for calislow-contai is still under way")
		close(hold)
		group.Wait()
		require.False(t, w.clashed)
		_, err = s.Delete(t.Context(), del(slow))
		require.NoError(t, err)
		require.Len(t, w.local, 1)
	})
}

func TestDumpAndEndpoints(t *testing.T) {
	w := newWorld()
	s := w.server()
	added(t, s, pod("b", "c2"))
	resp := added(t, s, pod("a", "c1"))
	dump, err := s.Dump(t.Context(), &felixv1.DumpRequest{Sections: []string{"route"}, DifferencesOnly: true})
	require.NoError(t, err)
	require.Len(t, dump.GetEntries(), 1)
	require.Equal(t, "no", dump.GetEntries()[0].GetError())
	all, err := s.Endpoints(t.Context(), &felixv1.EndpointsRequest{})
	require.NoError(t, err)
	require.Len(t, all.GetEndpoints(), 2)
	require.Less(t, all.GetEndpoints()[0].GetInterface(), all.GetEndpoints()[1].GetInterface())
	for _, asked := range []string{resp.GetHostInterface(), "shop/a", "k8s/shop/a/eth0", "10.0.0.2"} {
		one, err := s.Endpoints(t.Context(), &felixv1.EndpointsRequest{Endpoint: asked})
		require.NoError(t, err)
		require.Len(t, one.GetEndpoints(), 1, asked)
		require.Equal(t, "k8s/shop/a/eth0", one.GetEndpoints()[0].GetId())
	}
}

func TestIPAMForOtherPlugins(t *testing.T) {
	w := newWorld()
	s := w.server()
	add := pod("web-0", "c1")
	resp, err := s.Assign(t.Context(), &felixv1.AssignRequest{Attachment: add.GetAttachment(), Args: add.GetArgs(), Config: add.GetConfig()})
	require.NoError(t, err)
	require.Len(t, resp.GetAddresses(), 2)
	_, err = s.Unassign(t.Context(), &felixv1.UnassignRequest{Attachment: add.GetAttachment()})
	require.NoError(t, err)
	require.True(t, w.releases["net.c1"])
	w.failAt = len(w.steps) + 2
	_, err = s.Assign(t.Context(), &felixv1.AssignRequest{Attachment: add.GetAttachment(), Config: add.GetConfig()})
	require.Equal(t, codes.Internal, code(err))
	_, err = s.Unassign(t.Context(), &felixv1.UnassignRequest{})
	require.Equal(t, codes.InvalidArgument, code(err))
}

// A pod whose packets the node cannot carry is not started with a broken network; its address is free again.
func TestAPodOfAPoolThatTheNodeCannotServeIsRefused(t *testing.T) {
	w := newWorld()
	w.unserved = netip.MustParsePrefix("0.0.0.0/0")
	_, err := w.server().Add(t.Context(), pod("web-0", "c1"))
	require.Equal(t, codes.Unimplemented, code(err))
	require.Equal(t, "node x: kernel has no ipip", status.Convert(err).Message(), "for people")
	require.Empty(t, w.leftovers())
	require.NotContains(t, w.steps, "Wire")
	w.unserved = netip.Prefix{}
	added(t, w.server(), pod("web-0", "c1"))
}
