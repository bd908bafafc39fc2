// Ecs-bridge is a CNI plugin that connects a task to the bridge on which its metadata is
// served, and lets it send nothing there but what is its own.
package main

import "taskmeta/internal/cniedge"

// The build sets the version.
var version = "unknown"

const help = `ecs-bridge is a CNI plugin: it connects a task to a bridge, by an interface that can
only send as itself.

A container runtime starts it with the verb in CNI_COMMAND (ADD, DEL, CHECK, GC, STATUS or
VERSION) and the network configuration on standard input. By hand:

  CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS=/run/netns/c1 CNI_PATH=/opt/cni/bin \
    ecs-bridge <<< '{"cniVersion": "1.1.0", "name": "ecs-task", "ipam": {"type": "ecs-ipam"}}'

Keys:
  bridge  name of the bridge, made if there is none            ecs-bridge
  mtu     of bridge and interface, in bytes                    1500
  guard   strict: the task reaches the metadata endpoint only  strict
          source: the task reaches what is routed
          off:    a plain port of the bridge
  netns   where the bridge stands: the path of a network namespace's mount, or host for
          the plugin's own                                     netns beside the bindings
                                                               file, else host
  blockInstanceMetadata  true: the task has no route to EC2's own metadata
  ipam    configuration of the plugin that gives addresses, whose name is its "type"; two
          keys of it are read here as well: connectedSubnetMaskSizeIPv4 and ...IPv6, the
          length of a subnet that the task takes to be on the link

Environment: ECS_CNI_LOG_FILE is where to log (standard error), ECS_CNI_LOGLEVEL from which
level on (info).`

func main() {
	cniedge.Main(cniedge.Plugin{
		Name: "ecs-bridge", Version: version, Help: help,
		Add: add, Del: del, Check: check, GC: collect, Status: status,
	})
}
