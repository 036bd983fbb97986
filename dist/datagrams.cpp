#include "dist/datagrams.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>

#include "core/base/error.h"

namespace ttt::dist {
namespace {

sockaddr_in socket_address(Address address) {
  sockaddr_in result{};
  result.sin_family = AF_INET;
  result.sin_addr.s_addr = address.host;
  result.sin_port = address.port;
  return result;
}

[[noreturn]] void fail_socket(const char* call) {
  fail(ExitCode::kIo, "the watchdog's UDP socket: {}: {}", call, std::strerror(errno));
}

}  // namespace

DatagramSocket::DatagramSocket() : socket_(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
  if (socket_ < 0) fail_socket("socket");
  const sockaddr_in any = socket_address({});
  if (bind(socket_, reinterpret_cast<const sockaddr*>(&any), sizeof(any)) != 0) {
    close(socket_);
    fail_socket("bind");
  }
}

DatagramSocket::~DatagramSocket() { close(socket_); }

std::uint16_t DatagramSocket::port() const {
  sockaddr_in bound{};
  socklen_t length = sizeof(bound);
  if (getsockname(socket_, reinterpret_cast<sockaddr*>(&bound), &length) != 0) {
    fail_socket("getsockname");
  }
  return bound.sin_port;
}

std::vector<Address> DatagramSocket::addresses() const {
  const std::uint16_t bound_port = port();
  ifaddrs* interfaces = nullptr;
  if (getifaddrs(&interfaces) != 0) fail_socket("getifaddrs");
  std::vector<Address> addresses;
  for (const ifaddrs* entry = interfaces; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != AF_INET) continue;
    if ((entry->ifa_flags & IFF_UP) == 0) continue;
    sockaddr_in address{};
    std::memcpy(&address, entry->ifa_addr, sizeof(address));
    addresses.push_back({address.sin_addr.s_addr, bound_port});
  }
  freeifaddrs(interfaces);
  return addresses;
}

void DatagramSocket::send(std::span<const std::byte> message, Address to) const {
  const sockaddr_in address = socket_address(to);
  // A refused or unreachable address is what the watchdog is there to notice: by silence.
  (void)sendto(socket_, message.data(), message.size(), MSG_DONTWAIT | MSG_NOSIGNAL,
               reinterpret_cast<const sockaddr*>(&address), sizeof(address));
}

bool DatagramSocket::receive(std::span<std::byte> message, Address& from, double seconds) const {
  pollfd waiting{socket_, POLLIN, 0};
  if (poll(&waiting, 1, static_cast<int>(std::ceil(seconds * 1e3))) <= 0) return false;
  sockaddr_in address{};
  socklen_t length = sizeof(address);
  const ssize_t received =
      recvfrom(socket_, message.data(), message.size(), MSG_DONTWAIT | MSG_TRUNC,
               reinterpret_cast<sockaddr*>(&address), &length);
  from = {address.sin_addr.s_addr, address.sin_port};
  return received == static_cast<ssize_t>(message.size());
}

void DatagramSocket::wake() const { send({}, {htonl(INADDR_LOOPBACK), port()}); }

}  // namespace ttt::dist
