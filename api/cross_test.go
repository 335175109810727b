package api_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

// decode reads one object, defaulted and valid.
func decode(t *testing.T, kind, meta, spec string) api.Object {
	t.Helper()
	objects, err := api.Decode([]byte("apiVersion: projectcalico.org/v3\nkind: " + kind + "\nmetadata: " + meta + "\nspec: " + spec))
	require.NoError(t, err)
	objects[0].Default()
	require.NoError(t, objects[0].Validate())
	return objects[0]
}

// store is what is there already.
func store(objects ...api.Object) api.Others {
	return func(kind string) ([]api.Object, error) {
		var found []api.Object
		for _, o := range objects {
			if api.KindOf(o).Name == kind {
				found = append(found, o)
			}
		}
		return found, nil
	}
}

func TestCheckCreate(t *testing.T) {
	pool := decode(t, "IPPool", "{name: pool}", "{cidr: 10.0.0.0/16}")
	v6 := decode(t, "IPPool", "{name: v6}", "{cidr: \"fd00::/64\"}")
	block := api.NewIPAMBlock(netip.MustParsePrefix("10.1.0.0/28"))
	require.NoError(t, block.Validate())
	tier := decode(t, "Tier", "{name: security}", "{order: 1}")
	there := store(pool, v6, block, tier)

	for name, c := range map[string]struct {
		o    api.Object
		want string
	}{
		"a pool beside the others": {decode(t, "IPPool", "{name: a}", "{cidr: 10.2.0.0/16}"), ""},
		"a pool inside another": {
			decode(t, "IPPool", "{name: a}", "{cidr: 10.0.7.0/24}"),
			`spec.cidr: "10.0.7.0/24": overlaps pool pool, 10.0.0.0/16; choose a range outside it, or delete that pool first`,
		},
		"a pool around others": {
			decode(t, "IPPool", "{name: a}", "{cidr: 10.0.0.0/8, blockSize: 28}"),
			`spec.cidr: "10.0.0.0/8": overlaps pool pool, 10.0.0.0/16; choose a range outside it, or delete that pool first`,
		},
		"a pool of the other family": {
			decode(t, "IPPool", "{name: a}", "{cidr: \"fd00::/80\"}"),
			`spec.cidr: "fd00::/80": overlaps pool v6, fd00::/64; choose a range outside it, or delete that pool first`,
		},
		"a pool over blocks of its size": {decode(t, "IPPool", "{name: a}", "{cidr: 10.1.0.0/16, blockSize: 28}"), ""},
		"a pool over blocks of another size": {
			decode(t, "IPPool", "{name: a}", "{cidr: 10.1.0.0/16}"),
			"spec.blockSize: 26: differs from block 10.1.0.0/28, which is still in use inside the pool; write blockSize: 28, or wait until the addresses of the block are released",
		},
		"a policy of a built-in tier": {decode(t, "GlobalNetworkPolicy", "{name: a}", "{tier: kube-baseline}"), ""},
		"a policy of a tier":          {decode(t, "NetworkPolicy", "{name: a, namespace: b}", "{tier: security}"), ""},
		"a policy of no tier": {
			decode(t, "NetworkPolicy", "{name: a, namespace: b}", "{tier: other}"),
			`spec.tier: "other": does not exist; create the tier first, or name one that exists`,
		},
		"a global policy of no tier": {
			decode(t, "GlobalNetworkPolicy", "{name: a}", "{tier: other}"),
			`spec.tier: "other": does not exist; create the tier first, or name one that exists`,
		},
		"a staged policy of no tier": {
			decode(t, "StagedNetworkPolicy", "{name: a, namespace: b}", "{tier: other}"),
			`spec.tier: "other": does not exist; create the tier first, or name one that exists`,
		},
		"a staged global policy of no tier": {
			decode(t, "StagedGlobalNetworkPolicy", "{name: a}", "{tier: other}"),
			`spec.tier: "other": does not exist; create the tier first, or name one that exists`,
		},
		"the built-in profile": {
			api.DefaultAllowProfile(),
			`metadata.name: "projectcalico-default-allow": is the built-in profile, which cannot be created, changed or deleted; choose another name`,
		},
		"any other profile": {decode(t, "Profile", "{name: a}", "{}"), ""},
		"something else":    {decode(t, "NetworkSet", "{name: a, namespace: b}", "{}"), ""},
	} {
		t.Run(name, func(t *testing.T) { requireError(t, c.want, api.CheckCreate(c.o, there)) })
	}
}

// A set of networks may not be larger than the smallest set of a node that may use iptables.
func TestASetOfNetworksBeyondTheLimit(t *testing.T) {
	const twoOfEach, twoNets, threeNets, threeOfSix = "{nets: [10.0.0.1, 10.0.0.2, \"fd00::1\", \"fd00::2\"]}", "{nets: [10.0.0.1, 10.0.0.2, \"fd00::1\"]}", "{nets: [10.0.0.1, 10.0.0.2, 10.0.0.3/32]}", "{nets: [\"fd00::1\", \"fd00::2\", \"fd00::3\"]}"
	config := func(name, spec string) api.Object { return decode(t, "FelixConfiguration", "{name: "+name+"}", spec) }
	cluster := config("default", "{maxIpsetSize: 2}")
	refused := func(family, of string) string {
		return "spec.nets: 3: is the number of networks of " + family + ", but maxIpsetSize of FelixConfiguration(" + of + ") is 2, and nodes with iptables program no larger set: " +
			"rules that select it would drop; raise maxIpsetSize, or split the networks over sets with other labels"
	}
	for name, c := range map[string]struct {
		configs []api.Object
		spec    string
		want    string
	}{
		"no limit is set":                    {nil, threeNets, ""},
		"as many as may be":                  {[]api.Object{cluster}, twoNets, ""},
		"too many":                           {[]api.Object{cluster}, threeNets, refused("IPv4", "default")},
		"too many of IPv6":                   {[]api.Object{cluster}, threeOfSix, refused("IPv6", "default")},
		"a node takes fewer":                 {[]api.Object{config("default", "{}"), config("node.a", "{maxIpsetSize: 2}")}, threeNets, refused("IPv4", "node.a")},
		"all use nftables":                   {[]api.Object{config("default", "{maxIpsetSize: 2, nftablesMode: Enabled}")}, threeNets, ""},
		"one does not use nftables":          {[]api.Object{config("default", "{maxIpsetSize: 2, nftablesMode: Enabled}"), config("node.a", "{nftablesMode: Disabled}")}, threeNets, refused("IPv4", "default")},
		"who takes fewer uses nftables":      {[]api.Object{config("node.a", "{maxIpsetSize: 2, nftablesMode: enabled}")}, threeNets, ""},
		"a node takes more than the cluster": {[]api.Object{cluster, config("node.a", "{maxIpsetSize: 3}")}, threeNets, refused("IPv4", "default")},
	} {
		for kind, meta := range map[string]string{"NetworkSet": "{name: a, namespace: b}", "GlobalNetworkSet": "{name: a}"} {
			t.Run(name+", "+kind, func(t *testing.T) {
				large, there := decode(t, kind, meta, c.spec), store(c.configs...)
				requireError(t, c.want, api.CheckCreate(large, there))
				requireError(t, c.want, api.CheckUpdate(decode(t, kind, meta, "{nets: [10.0.0.1]}"), large, there))
				requireError(t, "", api.CheckUpdate(large, large, there)) // it was accepted before
				requireError(t, c.want, api.CheckUpdate(decode(t, kind, meta, twoOfEach), large, there))
			})
		}
	}
}

// The schema of sets has no limit of its own: kubectl cannot write one beyond the default, since an API server takes 3 MiB, and etcd half of
// that. (A lower limit is nothing that a schema could know; a set beyond it fails closed at the nodes, which say so.)
func TestNoObjectHoldsASetBeyondTheDefaultLimit(t *testing.T) {
	const most, shortest = 3 << 20, `"::",`
	_, err := api.ParseNet(strings.Trim(shortest, `",`))
	require.NoError(t, err)
	require.Greater(t, (*api.EffectiveFelix().MaxIpsetSize+1)*len(shortest), most)
}

func TestCheckUpdate(t *testing.T) {
	there := store(decode(t, "Tier", "{name: security}", "{order: 1}"))
	for name, c := range map[string]struct{ kind, meta, old, new, want string }{
		"a pool's range": {
			"IPPool", "{name: a}", "{cidr: 10.0.0.0/16}", "{cidr: 10.1.0.0/16}",
			`spec.cidr: "10.1.0.0/16": cannot be changed from 10.0.0.0/16; make a new pool, disable this one, and restart its pods`,
		},
		"a pool's range to another spelling": {
			"IPPool", "{name: a}", "{cidr: \"fd00::/64\"}", "{cidr: \"fd00:0::/64\"}",
			`spec.cidr: "fd00:0::/64": cannot be changed from fd00::/64; make a new pool, disable this one, and restart its pods`,
		},
		"a pool's range to its canonical spelling": {"IPPool", "{name: a}", "{cidr: \"fd00:0::/64\"}", "{cidr: \"fd00::/64\"}", ""},
		"a pool's block size": {
			"IPPool", "{name: a}", "{cidr: 10.0.0.0/16}", "{cidr: 10.0.0.0/16, blockSize: 27}",
			"spec.blockSize: 27: cannot be changed from 26; make a new pool of another range, disable this one, and restart its pods",
		},
		"a pool's default block size said":  {"IPPool", "{name: a}", "{cidr: 10.0.0.0/16}", "{cidr: 10.0.0.0/16, blockSize: 26}", ""},
		"a pool's mode":                     {"IPPool", "{name: a}", "{cidr: 10.0.0.0/16}", "{cidr: 10.0.0.0/16, vxlanMode: Always}", ""},
		"a pool's uses to load balancing":   {"IPPool", "{name: a}", "{cidr: 10.0.0.0/16}", "{cidr: 10.0.0.0/16, allowedUses: [LoadBalancer]}", ""},
		"a pool's uses from load balancing": {"IPPool", "{name: a}", "{cidr: 10.0.0.0/16, allowedUses: [LoadBalancer]}", "{cidr: 10.0.0.0/16}", `spec.allowedUses: "[Workload Tunnel]": cannot be changed from LoadBalancer; make a new pool for the other use`},
		"a policy's tier":                   {"GlobalNetworkPolicy", "{name: a}", "{}", "{tier: security}", ""},
		"a policy's tier to none":           {"GlobalNetworkPolicy", "{name: a}", "{}", "{tier: other}", `spec.tier: "other": does not exist; create the tier first, or name one that exists`},
		"a policy whose tier is gone":       {"GlobalNetworkPolicy", "{name: a}", "{tier: gone}", "{tier: gone, order: 1}", ""},
		"a profile":                         {"Profile", "{name: a}", "{}", "{labelsToApply: {a: b}}", ""},
		"the built-in profile":              {"Profile", "{name: projectcalico-default-allow}", "{}", "{}", `metadata.name: "projectcalico-default-allow": is the built-in profile, which cannot be created, changed or deleted; choose another name`},
		"a uid":                             {"Profile", "{name: a, uid: u1}", "{}", "{}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			old, new := decode(t, c.kind, c.meta, c.old), decode(t, c.kind, c.meta, c.new)
			requireError(t, c.want, api.CheckUpdate(old, new, there))
		})
	}
	t.Run("another object", func(t *testing.T) {
		old, new := decode(t, "Profile", "{name: a}", "{}"), decode(t, "Profile", "{name: b}", "{}")
		requireError(t, `metadata: "Profile(b)": is not the object it replaces, Profile(a); create a new object instead`, api.ValidateUpdate(old, new))
	})
	t.Run("an object made anew", func(t *testing.T) {
		old, new := decode(t, "Profile", "{name: a, uid: u1}", "{}"), decode(t, "Profile", "{name: a, uid: u2}", "{}")
		requireError(t, `metadata.uid: "u2": is not the uid of the object that is there now: it was deleted and made anew; read the object again and repeat the change`, api.ValidateUpdate(old, new))
	})
}

// TestUpdateSchema: the CRD refuses what ValidateUpdate does.
func TestUpdateSchema(t *testing.T) {
	c := readCRD(t, api.MustKind("IPPool"))
	old := decode(t, "IPPool", "{name: a}", "{cidr: 10.0.0.0/16}")
	for _, spec := range []string{"{cidr: 10.1.0.0/16}", "{cidr: 10.0.0.0/16, blockSize: 27}"} {
		require.NotEmpty(t, c.judge(asServer(t, decode(t, "IPPool", "{name: a}", spec)), asServer(t, old)), spec)
	}
	balancer := decode(t, "IPPool", "{name: a}", "{cidr: 10.0.0.0/16, allowedUses: [LoadBalancer]}")
	require.NotEmpty(t, c.judge(asServer(t, old), asServer(t, balancer)))
	require.Empty(t, c.judge(asServer(t, balancer), asServer(t, balancer)))
}

func TestCheckDelete(t *testing.T) {
	policies := []api.Object{}
	for _, name := range []string{"a", "b", "c", "d"} {
		policies = append(policies, decode(t, "NetworkPolicy", "{name: "+name+", namespace: shop}", "{tier: security}"))
	}
	tier := decode(t, "Tier", "{name: security}", "{}")
	for name, c := range map[string]struct {
		o     api.Object
		there api.Others
		want  string
	}{
		"an empty tier":     {tier, store(decode(t, "GlobalNetworkPolicy", "{name: a}", "{}")), ""},
		"a tier with one":   {tier, store(policies[0]), `metadata.name: "security": still has policies: NetworkPolicy(shop/a); delete them, or move them to another tier, first`},
		"a tier with four":  {tier, store(policies...), `metadata.name: "security": still has policies: NetworkPolicy(shop/a), NetworkPolicy(shop/b), NetworkPolicy(shop/c) and 1 more; delete them, or move them to another tier, first`},
		"a built-in tier":   {api.BuiltinTiers()[0], store(), `metadata.name: "kube-admin": is a built-in tier, which cannot be deleted; leave it; a tier without policies has no effect`},
		"the profile":       {api.DefaultAllowProfile(), store(), `metadata.name: "projectcalico-default-allow": is the built-in profile, which cannot be created, changed or deleted; choose another name`},
		"a staged policy":   {tier, store(decode(t, "StagedGlobalNetworkPolicy", "{name: a}", "{tier: security}")), `metadata.name: "security": still has policies: StagedGlobalNetworkPolicy(a); delete them, or move them to another tier, first`},
		"anything else":     {policies[0], store(), ""},
		"a policy's absent": {decode(t, "Profile", "{name: a}", "{}"), store(), ""},
	} {
		t.Run(name, func(t *testing.T) {
			requireError(t, c.want, api.CheckDelete(c.o, c.there))
			require.True(t, c.want == "" || api.ChecksDelete(api.KeyOf(c.o).Kind), "it would not be asked")
		})
	}
}

// TestCheckPassesErrorsOn: what goes wrong while looking is not taken for an answer.
func TestCheckPassesErrorsOn(t *testing.T) {
	broken := errors.New("cannot list")
	others := func(string) ([]api.Object, error) { return nil, broken }
	policy := decode(t, "GlobalNetworkPolicy", "{name: a}", "{tier: security}")
	require.ErrorIs(t, api.CheckCreate(decode(t, "IPPool", "{name: a}", "{cidr: 10.0.0.0/16}"), others), broken)
	require.ErrorIs(t, api.CheckCreate(policy, others), broken)
	require.ErrorIs(t, api.CheckUpdate(decode(t, "GlobalNetworkPolicy", "{name: a}", "{}"), policy, others), broken)
	require.ErrorIs(t, api.CheckDelete(decode(t, "Tier", "{name: a}", "{}"), others), broken)
}

func TestBuiltins(t *testing.T) {
	tiers := api.BuiltinTiers()
	require.Len(t, tiers, 3)
	for i, want := range []struct {
		name   string
		order  float64
		action api.Action
	}{{"kube-admin", 1000, api.Pass}, {"default", 1_000_000, api.Deny}, {"kube-baseline", 10_000_000, api.Pass}} {
		require.Equal(t, want.name, tiers[i].Name)
		require.Equal(t, want.order, tiers[i].EffectiveOrder())
		require.Equal(t, want.action, tiers[i].EffectiveAction())
		requireGood(t, tiers[i])
	}
	require.NoError(t, api.DefaultAllowProfile().Validate())
	requireGood(t, api.NewKubeControllersConfiguration())
	requireGood(t, api.NewIPAMConfiguration())
	requireGood(t, api.NewIPAMBlock(netip.MustParsePrefix("10.0.0.64/26")))
	requireGood(t, api.NewBlockAffinity("", "node-a", netip.MustParsePrefix("10.0.0.64/26"), api.AffinityPending))
	requireGood(t, api.NewIPAMHandle("a"))
}

func requireError(t *testing.T, want string, err error) {
	t.Helper()
	if want == "" {
		require.NoError(t, err)
		return
	}
	var errs api.Errors
	require.ErrorAs(t, err, &errs)
	require.EqualError(t, errs, want)
}
